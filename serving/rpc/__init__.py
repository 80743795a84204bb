"""The gRPC services: what every call goes through, and the messages of both protocols."""

"""The gRPC services: what every call goes through, and both protocols to and from messages."""

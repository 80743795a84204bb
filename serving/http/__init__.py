"""The HTTP API and its page: the calls of gRPC in the forms of the web, by the extra ``http``."""

"""The gRPC service of `proto/stt/v1/stt.proto`."""

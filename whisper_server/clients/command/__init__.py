"""What the commands of the gRPC clients share."""

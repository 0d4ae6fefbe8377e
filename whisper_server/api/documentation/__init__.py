"""What /openapi.json says of requests and answers, which the routes read and write by hand."""

"""The wire protocol's generated modules, by version; made by `make proto` from the .proto files beside them."""

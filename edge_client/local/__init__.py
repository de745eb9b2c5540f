"""What a device's owner does here without a coordinator: train on the device's own data, and classify with a model."""

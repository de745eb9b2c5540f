"""Whether this device is fit to take part, and what its owner can do about it (``bitfleet-client doctor``)."""

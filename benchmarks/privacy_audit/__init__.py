"""What a coordinator learns of a device's samples from what the device sends: two attacks, and what weakens them.

    python -m benchmarks.privacy_audit --json PATH

``inversion`` rebuilds the images that a device trained on, ``membership`` tells whether an image was among them. Both
see only what a coordinator sees (``views``): a float32 update, one bit a weight, a sum over a cohort as secure
aggregation leaves it, and either with the noise of differential privacy.
"""

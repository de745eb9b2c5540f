"""Differential privacy of a job: what it asks for, and the account of what its rounds have told of a device."""

from server.privacy.accountant import epsilon_after, multiplier_for
from server.privacy.choice import PrivacyChoice, check_privacy, privacy_of

__all__ = ["PrivacyChoice", "check_privacy", "epsilon_after", "multiplier_for", "privacy_of"]

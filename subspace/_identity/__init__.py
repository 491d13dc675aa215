"""What tells one (d, U) from another, as a state_dict carries it beside theta."""

from subspace._identity.fingerprint import Probe, fingerprint, probe
from subspace._identity.state import Identity

__all__ = ["Identity", "Probe", "fingerprint", "probe"]

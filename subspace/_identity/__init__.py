"""What tells one (d, U) from another, as a state_dict carries it beside theta."""

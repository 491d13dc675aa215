"""Which route is fastest: a cost model, whose constants are measured once per machine."""

"""What the routes are made of: the dense w and T, thin factors of T, the sparse part, one tap's pixels."""

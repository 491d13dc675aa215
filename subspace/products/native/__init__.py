"""The compiled kernels (cpp/), where a compiler was there at installation; every route but one works without them."""

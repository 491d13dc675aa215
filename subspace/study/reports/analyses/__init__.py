"""Reports on the results of studies that ask more than the usual ones."""

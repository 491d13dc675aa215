"""Laws: what holds of every plug-in and every function, in folders that mirror the package."""

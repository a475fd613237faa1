"""What a maintainer runs from a checkout; no part of the package."""

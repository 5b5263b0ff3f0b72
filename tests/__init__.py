"""Tests, in folders that mirror the floors of the product."""

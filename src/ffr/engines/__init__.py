"""Engines: a policy that samples and learns, behind the same observations everywhere."""

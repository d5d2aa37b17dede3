"""Find, Fix, Reason: context repair for video reasoning."""

__version__ = "0.1.0"

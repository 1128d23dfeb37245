"""Reference cases: numbers of another implementation, recomputed and judged. Knows no system."""

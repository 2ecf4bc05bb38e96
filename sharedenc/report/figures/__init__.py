"""The figures, one module each: a table first, then drawn from it."""

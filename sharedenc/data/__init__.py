"""Data sets: what a source gives, the packed form that training reads, and how to get both."""

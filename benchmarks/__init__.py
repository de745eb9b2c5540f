"""Side-by-side runs: each writes JSON and, where it helps, a plot. They report; they do not judge."""

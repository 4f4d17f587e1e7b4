"""Train, distil, compare: the straight lines, and all that is looked at before them."""

"""The only training loop, its task, its guard and who watches it."""

"""Distillation methods: one file each; every module here registers itself when `LOSSES` is first asked."""

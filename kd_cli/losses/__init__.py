"""Distillation methods: one file each; `LOSSES` imports the one whose name a component begins with."""

"""The commands of `m17ctl`, one module per noun. Import its modules by name; this package runs nothing."""

"""The daemon: composition root, socket, supervision, exposition. Import its modules by name; this package runs nothing."""

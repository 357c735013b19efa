"""The operator's hand: client, commands, tables, screens. Import its modules by name; this package runs nothing."""

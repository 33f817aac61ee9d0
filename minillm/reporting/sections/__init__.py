"""The sections of the report that stand only where something more than Rouge-L was measured."""

"""Drawing tokens: what is the same for every kind of array. Imports no torch."""

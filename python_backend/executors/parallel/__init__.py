"""One engine over several processes of one machine, a GPU each: torch's own distributed runtime carries what they share."""

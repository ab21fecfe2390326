"""What is done in the lab and counted: each scenario drives a fleet and a load, and returns what it found."""

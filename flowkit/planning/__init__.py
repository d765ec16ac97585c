"""What an experiment will take on a machine, before anything is submitted: storage, jobs, cost, reading."""

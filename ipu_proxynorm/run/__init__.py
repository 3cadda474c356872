"""A run put together from its configuration: network, optimiser, schedule, folder, processes."""

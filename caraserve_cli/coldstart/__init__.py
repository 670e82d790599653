"""Cold adapters: strategies, CPU workers, and what they share with the device."""

"""What a metric writes into: values, their cells, and sharing them with other processes."""

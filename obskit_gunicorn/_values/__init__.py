"""Where metrics store their numbers: values, their cells, and sharing them between processes."""

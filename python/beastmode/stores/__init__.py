"""The stores, the protocol they keep and the values they speak in."""

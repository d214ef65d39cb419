"""Plans measured on the device: rivals, their inputs, the winner kept and read again."""

"""Virtual cameras, sensors, links, brokers, clocks and disks with ground truth; and the demo that shows them."""

"""From a signed manifest to a whole bundle in the store: what is lacking is fetched chunk by chunk, unpacked and verified."""

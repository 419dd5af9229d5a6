"""The frozen network: viewed as data, inspected with an example, and installed with other weights."""

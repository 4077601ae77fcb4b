from tests.hostile.table import Block
BLOCK = Block()

# attempts: predict another session's randomness from one's own, both being copies of one zygote
# layer: reseeding after the fork
# category: information
# outcomes: OK
# evidence: random, system, uuid, secrets, shuffle, temporary name
# distinct: random, system, uuid, secrets, shuffle, temporary name
# host: unchanged
import random
import secrets
import tempfile
import uuid

held("random", random.random())
held("system", os.urandom(8).hex())
held("uuid", uuid.uuid4())
held("secrets", secrets.token_hex(8))
held("shuffle", random.sample(range(10**9), 3))
held("temporary name", tempfile.mktemp())
# %% session
import random
import secrets
import tempfile
import uuid

held("random", random.random())
held("system", os.urandom(8).hex())
held("uuid", uuid.uuid4())
held("secrets", secrets.token_hex(8))
held("shuffle", random.sample(range(10**9), 3))
held("temporary name", tempfile.mktemp())

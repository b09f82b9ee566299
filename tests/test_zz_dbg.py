import shutil, io, numpy as np, torch
from PIL import Image
from tests.test_sample import drawn, again, pictures, sample, ARMS
from tests import runs
from mm_cca.sampling import *
def test_x(again):
    folder = again.parent/"run"/"samples"
    before = {a: pictures(folder/a) for a in ARMS}
    for size in (1,2,4):
        shutil.rmtree(folder); sample(again, f"sample.batch_size={size}")
        for a in ARMS:
            now = pictures(folder/a)
            for k in now:
                if now[k]!=before[a][k]:
                    x,y=[np.array(Image.open(io.BytesIO(b))).astype(int) for b in (now[k],before[a][k])]
                    print("DIFF",size,a,k,abs(x-y).max(),(x!=y).sum(),x.size)

"""The first process of every payload's world, ready to run: init.c, compiled.

The program is 2 KB, needs no library and so runs in any image. It is kept as text because a node has no compiler.
``SOURCE`` is the SHA-256 of the init.c it was made from; a test compares.
"""

from __future__ import annotations

import base64
import os
import platform
import zlib
from pathlib import Path
from typing import Final

from kolejka.common.errors import NodeError
from kolejka.common.files import replacing


def program() -> bytes:
    """The ELF file for this machine. NodeError where there is none."""
    machine = platform.machine()
    if machine not in PROGRAMS:
        raise NodeError(f"payloads can be started on {' and '.join(PROGRAMS)} only; this machine is {machine}")
    return zlib.decompress(base64.b85decode(PROGRAMS[machine]))


def place(folder: Path) -> Path:
    """Put the program into ``folder``, executable for everybody, unless it is there. Its path."""
    path = folder / f"init-{SOURCE[:12]}"
    data = program()
    if not path.is_file() or path.read_bytes() != data:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, mode=0o755) as sink:
            sink.write(data)
        os.chmod(path, 0o755)
    return path


# --- written by build_init.py from init.c; do not edit below
SOURCE: Final = "a1155f397de54b96dc80f8e1924030a55c920cd74da66f6eb233b671280850df"
PROGRAMS: Final = {
    "x86_64": (
        "c-pO1T}&KR6u!&uB1LhQ7$g2A8@;Ah=)#abENbfxUF0sACMr;Q=!5(jnp)b(Ou8l@TX)xRyP0TAA2CtmBM*(C$%MkP24(G&ga;)y"
        "p^bsEWNFg)1K1YEbMDM;0ULesW^;eeJ?Gr-eCM3m;U@L<5|@h<MhQ7W@N|iU#5v^1zbGxLfGh}lA>tu!q3ad;_9)mD)-f;HwH97_"
        "b6M-z;qpI+&spVLjIXfx((T-<aQdT_bz4_fP(I&;zf6;SmGK3}f0DfUyqsZD`U#_DF80^HbC0r9nQ~@jnGyEQ<!{a?Z!5=@cBQSo"
        "m7QPn11>eSKN7#^9xk6A0*9-gc?e-fa~b1XjE8AeixFP&;m*fW&AwQ$Q$G`nx(4)<v1kd=yIE?ust6(Xk!4x(JmWKr|7>dDP9S2*"
        "jQ*8*P8_c@zR375w$Lzj5Ze3mEH&h3sWy1W(Ea8s;$pQA9A5c+cc9ZA;mMA6n!+LNvL)atHROxER;v%Zn@!M5g7_x+R^tUvZ6c#R"
        "7Kv}2(kdE95;fnzRmA!}zg+Zc9sp6}tbIkM(PP>x9tN*G8!_75%orCw&6f(OSvCUzEha^>d2cSU4cpXE6~v#5;vQHlWBV4QkuSv!"
        "oKz#~KGv`z8J~dUe(K_P-CCtd;nB1kd`}QkM)H!$5JU+I>;SJz-lB~>Z;pdhkda0ZlGh9(^2#FZ+(R)H$&8fzwgj^pra^gKhIg+a"
        "G}a_9p^QO3RAY>ODhxFm5-FM#p^AhhXa=J`3)5_vR=)*Pkg#l+zJcW#=A+a^Rbc!Fr_@zGM&}&a0<3<a_cgsCh*Ku8OPHb2YO@9*"
        "y9*&A=ouE@bV<qnEuhRHT$!x3Ss|ff{3^cz+VRbM+8WG0DR~$SVuLi;EG6sFHa;nyep>qYc{svp6v0W!$KfQeD`{jK7>INaUiR(q"
        "dRyhcf@5oz#kbx1qLM~}1=WIOm2Y5`g=t8>s!Rp2f1okBO8c16M*CF0j?{MG^p47NcyktU4$=_OB-H6h+YIGwKUMNP@EPp@2&&OT"
        "qfU*ZPK)8$Wc(tHA(KFbSg|L~C9%6mN1Ot+8NE-Y%5P3o2|gi0WeQ6ulFg1H{)Qe}_Mz628eE2M)2P$DqVcc`?7oX|2!C^1D}{MY"
        "KiHDemi;>`uR_Fai5`eP2W?fNzYy72JjVabKMN+m>%XzA2MH$1RE21@@A65OdWJ%%HBFfL8rxTxzenr#qUR^*p@~QAa@e@`q!rH&"
        "=gRLwN}-ZRj>BeZNfd?cAI%ieHp(={jD8)Yz*Q8`9!9p}KU(;16nr+!=tqG0=&b#TXvGWyy;#Ih>*IpkT!B<b6y#jxcM8P_U)WKI"
        "ab15%wpM#A0qcVcq7oCU<{iswK6><J|BK<?u9Kbpez`tSAE-MhAFA%@?UL(t`G6xLBrwo7puMkkc9DSA8`Vgl`^@Rnz5N>bAI8H@"
        "BbNT-|7rLCQen9E*jGBTx;^p}j>G-r!S*{>_XBXn9s8%qzrX)C1;;uN"
    ),
    "aarch64": (
        "c-o~^U1%It6h3$EY_gl|#+U|LO?5Uu&_*=2C6=xaW|Fo_i#~LnHy`q6nzT(TX(L1{W@0M@gXq+P57Kr+1iLGusR?mI!Hp3uHiE8N"
        "K}2RZv`t8?E?Df^pX+yLCz5U|K6v4B@BPl-cg~!9r+@pCk1LGP(okrE<mn^QowM%Za|QpX0NVmRojjyEx*kVAH<s*{);~OS+v;`o"
        "c3td!cA3ln9Hs7hADKy;ll1`6@mWr>G-t7M_n65P=dl*ZI1MIMtR75o`#!;&FQlQjjhRUT)<}A&IzhYI*HT%34fX6GGNcYu)pwdy"
        "vVsZv_D>;J&%s7@VzHR?mEsCw@fcs`x8NoHt(%8Gjot*G6fbaO3TC3%O#Uv!+t=ae=HU+=xu5jxsQ_iV5ifF=8O}gn5+v&q;*eL*"
        "zV0FG>p)<LfnUQ>*3+nx!Bp&LSWk+R0i95U(<2GLo}F8j%kL}rxD0znx!e>df78j|;dn!g+q^KA!c1eHF3aKM;$809ye`J4O7-k4"
        "55zt*$%<4U2l&1K{!2Lx$Xb+}$w}Y?YHlxORhZ+z63D^fewKO~%gLxDGwhRf+sa;GU3<2)64f_+z%o;1WY|NBb#9HB9M0n`bJDtM"
        "w*+1OUHGmtztj=MstS-LF^wp5IdbYJS%=pUcL8#nDAsaSOzeeDGxIMLT@{A#Q>LYq44FG;kz|{!5jT_4M#f9`>t|$6=4LbbDzHK1"
        "98_f7m7HW;$wS6&Sw-V|kr}p|DP)h3B{+`~?CfgF+OuTY&rp_7pIX>0a>WuO6cSHUR=iK~`HzdEb|+;c_<rI$igzMziu+>lWj%$x"
        "M!tp0--IFa9lX~}wm4i)ui&DU(x`n)7@AI*;a`PekLV$7EqX@oJN2yAO_}*c?BCGino2zb*voHW`g}ua#FPGN(QmBOjLVvAN9+dl"
        "CKJNQugznS3E_#(wlmAF(6g^lu159|H5v(;$<2^UJV7)zTg|L0S1x4_LzbRq78RRe>9<najj&L#1o`(DM%O_;6DS(`0zC)ZDuR56"
        "v<D|2Wc{pYVNt<-@tWZQ++VvLHE$<t{uHleGA{1Xmlwqt-h%QpYSu))p++x-WNz)~UB$g0&tot9pc=lLFoW>_GO$G7-fJoD$K43T"
        "PFJk_=9-sAuW&lAt}!Nu!D9;g-U56Vzj;h?by}2b6T{$_0=EVqWzf4}Jc`D=MsbI8HN_?8A8z4}fG;?$z5-bm>pI!*^)xzwHz5k$"
        "o!~tUe4dxY<a+)WVeCe)rBIu}pmWEM<@cu8NAcXfC|npoTzj7$Pmd^;to5ZMO2~eX;<DZ|h;O4tvbJZiUx0sYJ&odC8t@zb`4-OT"
        "Z}pRHljaR!{D|}NcbB~wCbjQ=R^itiYz?OQmk{fhz0VI~9tT#x43mF>F<><=R!&Yp`g{p%Dk(jooMh4;-bVTc_*oU3#*#Oc6ICZG"
        "v3+9e)<=Wuw{^7bX+03!xT$Va-G+xY*4MgQqPjy}hk6h8wzg4SZ%1D*)pc|=?>^YNzk}-9pWDB`<3KO{?@=skfLXBOKbITbp4;`+"
        "Jo~#{d&NBm3v_qQosZ_}d-Ki}uKk8Q{9V^x%fs0nR(^-Prd|7*f3aU0e*<*Sj8^"
    ),
}

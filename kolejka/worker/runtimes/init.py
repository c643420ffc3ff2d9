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
SOURCE: Final = "5b3d1d956715e967d90dc3353d58ed454b63a1c5bdd5257808e16d8219a17c08"
PROGRAMS: Final = {
    "x86_64": (
        "c-o~^O>7%Q6dwPDv=G)25`?A)3r*FO7RMWLa0;~EbWO(ARsxdH95|3al&ZfXyN!_?;<7f%#H<824naaaap1tANUJolEg52QqRIg("
        "iduw{#*tG|@skA7WO*~Yc9K%Tfss8wZ|1%E-uJ$-$D_*2ZkG#Hn;RWNZ1n|-@O8wohw5raz!rvc5#&W4e%8m&+pX$X9gq9auCaR4"
        "tBdO3j*$P^{LU!eC3K1C3-`(|!s_=fGGJX>V)pqc`xK($H-z3G^gF><sfYz4<eoC(*HeG)8GW3bDeNUyi5Rl~dgV@0Iwid>^+?@4"
        "UF7o0I)qTN2V?qu&-mW_7_62Lco8B-XFZ{tgv!_-H{>Nho7IzSr#}_$(=MbEt`Y5YD&a=j0LhLw)gYALvn)%TC$vcD_ofQrI3kiM"
        "XjjZpzPwH7Ekb{=jfSa#(Vkx>*|7l0cEde}7BFAn8_UBG@Y*N46U}>hBs<$YhDFY0TOd+)%%3{ms*Su=O5+Jmd{n&KG3jkh7t|+W"
        "`sNw6p<^O_WD>Sw*4LHAT2%88m^$X{EtF>wb3T4CM5U#e(c>Y;RUXrPwu+jR3INa|LabErmD5`=&5kue{^bOlQ!gfaZU_@s_=XoN"
        "#zoJ`_B(>{5g4`$r*C-FMiax8IS)jhMyMWD1d}ibZf3C4yDj)?KH|K26|9_!9D^YE%rL{<SR<VlW3&Vqh0G~8E2)fI#8uH^LXmM;"
        "G0x)QsCW}<!M4JL+POh_=nVd_TB|hvm?eA>x;Ys)zXn|k>?k-yN-~Zxc@kjyQ%B+o{TzSh*x1tuz*nYI*yMys)9iH+L&eSJ5eC*%"
        "O^(AQ`npTVT-pS#9HOO}R+|qLsb#LvpWw8<eqUXI-Y;aL;E+n<mQEpal=<p2{OV@m{ll=-lURkQ0ho%bQE?$Qko?lWU35meLVt#c"
        ")*R8dJlc<(S57G>mq|*-A#q-s4f3-~gm&ZJoUK6_6V|<=&@wZ>NetLy@RB%$RDmr?&L*a8M}oT-q*+$gxZ%CWUzpO4@w=De+2kVV"
        "U&RhO{uCHQ`z6FE;9K8P>!4rJ#CTR+4D3`xgNw0Vn&MJ`swV;<cDMFSZ0*)b`bT9Sxc#R6Dsf#)vkhGSUsciy-GGwrkFuidw}Z*_"
        "EDqSE+O86P1LNt(Y(Ca*K5glx@$%>funqc}D8giRf!E6p&)g)gWhvjp-cX?i6%y_RxGypK^lvS8FC(nIs2u}#dgts{+r@YW5ilKs"
        "20!3rm#Yc_G8MX}(7&oWfgimoNN`nqM6{L%Ee`9QNiLG~@&Q2CdE&&;K#M%of4c8{Kx_-P1w+q?&mSHf>KEHI@sMLeC^#}aqQ0&6"
        "^`oFVlu%J{;KI3cL+4fWf7_$Z1F8GR|HbbAiE48_;NR%jLJ!z~ar_RVhx_jwJrBY4qyuOl`uF?)2ILPEU;"
    ),
    "aarch64": (
        "c-o~^Uu+ab82@H>@3=eeN~ujii|#?2v=yyDD&c&v+ZHs4K5*`P|5+@AVhZ<wVscZ9NwqO?!Gs3_T;J#=CKPGP5sim6hA2L`F_`$Y"
        "cU4MLL@trY31$4v-kvE}j1O)ynVH}B@ArN4&1`bVt1l^xQTbD7n&j>r8SdWj@QeO`RDf-Ro<Tm+TwR~5U;4^+<@swLJv0YAz1_bi"
        "-dN)DKfh{kev-KDsAN4&^vSGB>AcF)S03kfPF2(0kf}6kYnXi);Pzuy?YfqS-gd@q0@hAOtUgP-`_@rSvVn$n5}8tmY1+vSjjU*v"
        "e)v;}H8)_Rxv^MU`pT&aVyS6$iC_P_#_`1?UrsE7Pfqo_G6f^MlH0e1IB^et7LS~B<zX_4XChSCk9et7JYImjDoWOM#G!yu{K!Yv"
        "_mRjL1HZPTY^Yr$lWACAWkWfYOz6Z?Dm|YK8^s%smGb)*KIUN0sFa)H=Fi>yU5@v~l%uXl=P>dZXKPA0dH8_0=l8_a<!Ylit47ja"
        "ak5f%$N|2ufqyxtVOfh>ZeIdEtd-VMwgF=bSQa_B+&`zGTn(A)iN}MoZuRVKHn4YF4^eB|r>xMknoMVxVqICw?ePlEGADhYd0W)u"
        "KY(+U`Q<tlYeR%AiRnazxzw4TWgR|5+y%%TqICBiF})8uT`as1x+6>xrUI=ZQ|7L+l-(<9q;gx@$awjrabD)cw{rV^V57)6s>ry@"
        "Imx(^hm1`%G-ZT%+(}Z*nITJzs1pP`r;&>270Y>@iiG+!!|vt`v&0O=#4aj|la!hNEHvSCQ89({1D<&kadT=g4PVx4SnCvASpT~)"
        "Wxk_NaJ$>(a&{RPy_zPS2g1}1DvbXoOlQW3>Fdxla@}PV_5D<szln9y$mkjk4P!0Of(L_RdBl_cn$d5pnrCE9b|7{edXouZR@UZ4"
        "$VAdVF*}0Xbffqlm1^XuzKK+n+gl-*c$VnGY$vlecycLw4zh31Pgf(Mv7Nv|7)cgdxT)X{1bBQHchVU_9Y@HTKch8=r7zr##yN2T"
        "_q#TaI&@HQtUW+6$@c*IG2-<+$6B6kJ$!axM3Kh_z_N$;-OZ_C^m`<Iwr=@3>H(U(rP6oWTJzF4cwB~lz>ivo`7y=Q=~nJekAq(h"
        "+}eUvKtIOu(3$g%lyNz4q>SW@GdPh2UvOG;3$h~SM%lxyG&ziWJ^|fVz<UPxyjqo(^F~LQdqUDTvqq!ty**ahZ=#PfrCwjLFpRiP"
        "pOMM;DHiUOeZ5nOIVUI+t>X4ii0`0A47q=S^#c6sO*DzSX2NfL?g94bS?%KXOZ>ht^VpZ)QT9%pw8Kxay0GrPt!w3*{g)6;OWxaO"
        "<hu>5bqOY4^<RKBcvvmD!RU`N)=^b`N;%D>zx{HLNAP0}b9)t6PDM|H553&k`9id5dw=iVo&(X%TUxfXY<hNcYqPf`YB@A;C~+{+"
        "(@QOh{=*4s=^yCYbFgQypIZ9f8XW9Dkf8tlt&}yu@GtvsdH*=y!}?l<{c6u%@%FcUhBue?M=SIL75h5Rep3aW@CfM@ID5pbJ|eH<"
        "o_)i=*q6V*0S^#$tp"
    ),
}

package androidx.appcompat.widget;

import android.view.View;

public class Toolbar extends View {}

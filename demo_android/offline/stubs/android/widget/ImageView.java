package android.widget;

import android.graphics.drawable.Drawable;
import android.view.View;

public class ImageView extends View {
    public void setImageDrawable(Drawable drawable) {}
}
